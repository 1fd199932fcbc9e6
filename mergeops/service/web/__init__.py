"""The service over HTTP: guard, API and page. Made of FastAPI, so imported when it is served."""
