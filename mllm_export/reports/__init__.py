"""A report as text: JUnit XML, Markdown, HTML."""
