"""The page on which a reader scrolls through a scan and says what each candidate is, and its local server."""
