"""From a Program to a build folder: the Exporter interface, the manifest, golden vectors."""
