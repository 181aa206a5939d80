resource "notes_note" "hello" {
  name = "Hello"
  text = "from Terraform"
}

resource "notes_note" "world" {
  name = "world"
  text = "in lower case already"
}
