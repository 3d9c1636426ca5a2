"""The versions of a trained model: which one is deployed, how a new one is rolled out, and how it does."""
