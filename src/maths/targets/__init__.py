"""What students are matched to, a module a kind; settings name the kinds, and no other module is loaded."""
