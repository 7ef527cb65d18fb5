"""Looking at what the engine holds, for tests and measurements; nothing here serves requests."""
