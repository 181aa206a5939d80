protos: tflint.proto

tflint.proto:
	$(PYTHON) fetch.py
