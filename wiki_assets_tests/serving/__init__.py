"""The service, from its bounds to the page in a real browser."""
