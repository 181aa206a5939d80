variables {
  folder = "tested"
}

run "plan" {
  command = plan
  assert {
    condition     = notes_note.counted[1].name == "n1"
    error_message = "The name is known before."
  }
}

run "apply" {
  variables {
    titles = ["Title"]
  }
  assert {
    condition     = notes_note.titled["Title"].id == "title" && output.sizes["Title"] == 5
    error_message = "The note is there."
  }
  assert {
    condition     = output.first == "0 later"
    error_message = "The data source has read what was written."
  }
}
