protos: sdk/plugin/pb/backend.proto

sdk/plugin/pb/backend.proto:
	$(PYTHON) fetch.py
