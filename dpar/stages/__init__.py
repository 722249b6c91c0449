"""One module a rule of the workflow, under the rule's name."""
