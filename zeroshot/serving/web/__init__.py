"""HTTP: who may ask (`guard`), the routes of applications (`api_routes`, described by `openapi`)
and of the page (`page_routes`, with the files in `static/`), and the `server` around them.

The only folder that imports starlette and uvicorn.
"""
