"""The console at ``/river/console``, and a browser's sign-in to it."""
