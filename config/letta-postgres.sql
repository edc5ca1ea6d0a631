-- Letta keeps embeddings in columns of pgvector's type and does not create the extension itself.
CREATE EXTENSION IF NOT EXISTS vector;
