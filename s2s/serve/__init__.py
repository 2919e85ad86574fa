"""A small web server for trained models: a page to type sentences into, and the JSON API below it."""
