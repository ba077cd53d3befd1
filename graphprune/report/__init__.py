"""The HTML report: one self-contained file about a model, or about a pruned one beside its dense source."""
