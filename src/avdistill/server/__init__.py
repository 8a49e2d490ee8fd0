"""A web server to look at a dataset, search it, label uploads and review an audit: Starlette, no outside request."""
