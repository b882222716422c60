"""Pages of HTML that need no other file and no network: the document, its tables and figures, and charts as SVG."""
