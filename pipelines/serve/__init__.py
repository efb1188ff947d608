"""The OpenAI chat endpoint over a run: requests, their batches, the web server."""
