"""The MQTT clients below a bus, and what they share: packets, reconnection, session leases."""
