"""Deployable declarations: which provider stands behind which name, and how long its objects live."""
