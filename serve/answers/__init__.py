"""From a query to an answer; neither Ray nor HTTP."""
