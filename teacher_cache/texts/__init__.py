"""Text towers of the teachers, embeddings of prompts, and the basis of the queries."""
