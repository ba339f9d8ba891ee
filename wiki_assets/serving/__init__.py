"""The search as a service: HTTP with OpenAPI, a page to search on, tools for assistants, and Ray Serve."""
