"""The part of the app on each SuperNode: it trains on the samples that --node-config names."""

from har_edge.integrations.flower import make_client_app

app = make_client_app()
