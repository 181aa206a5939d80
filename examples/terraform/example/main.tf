terraform {
  required_providers {
    notes = {
      source = "example.com/me/notes"
    }
  }
}

provider "notes" {
  url = "http://127.0.0.1:8000/notes" # and NOTES_TOKEN in the environment
}

resource "notes_note" "hello" {
  name = provider::notes::slug("Hello, World")
  text = "from Terraform"
}

data "notes_note" "hello" {
  name = notes_note.hello.name
}

output "note" {
  value = "${data.notes_note.hello.name} has ${notes_note.hello.size} characters"
}
