"""The built-in exporters, one folder a runtime; found by the entry points `qn_deploy.exporters`."""
