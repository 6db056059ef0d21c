"""Edits as artefacts: patches, the edited model that carries them, adapters, export."""
