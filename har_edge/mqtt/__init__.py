"""MQTT: clients, sessions and brokers, without what the messages mean."""
