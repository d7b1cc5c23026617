# Each target runs the script of its name, which is also what CI runs.
.PHONY: setup check test proof demo bench interop sanitize screenshots

setup check test proof demo bench interop sanitize screenshots:
	scripts/$@
