"""One HTML file that shows what a cohort's masks are worth, and the cases behind the figures."""
