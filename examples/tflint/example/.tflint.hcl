config {
  plugin_dir = "./plugins"
}

plugin "notes" {
  enabled = true
}

plugin "terraform" {
  enabled = false
}
