"""The page for people at ``/river/console``, and how a browser is let in to it."""
