"""Several processes of ingest behind the same ports: who starts them, restarts them and speaks for them."""
