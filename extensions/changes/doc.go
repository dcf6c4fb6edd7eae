package changes
