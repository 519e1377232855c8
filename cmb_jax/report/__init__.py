"""Self-contained HTML pages: the report on one subject and the report on an evaluation."""
