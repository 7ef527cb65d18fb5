"""What a run leaves behind: a table, JSON, CSV, one JSON line per request, an HTML page."""
