"""The studio: V2Edit in the browser."""
