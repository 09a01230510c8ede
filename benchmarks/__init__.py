"""Wirestate beside its peers, at the same work: each module measures one thing and says which."""
