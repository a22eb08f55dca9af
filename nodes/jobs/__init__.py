"""Jobs: starting the backend's tools in their own process, following them, stopping them."""
