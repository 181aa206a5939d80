# A configuration as people write them, for the provider of examples/terraform.
terraform {
  required_providers {
    notes = {
      source = "example.com/me/notes"
    }
  }
}

provider "notes" {
  url = "${var.api}/${var.folder}"
}

variable "api" {
  type = string
}

variable "folder" {
  type    = string
  default = "notes"
}

variable "titles" {
  type    = set(string)
  default = ["Line ends", "Unicode"]
}

variable "many" {
  type    = number
  default = 2
}

variable "nothing" {
  type     = string
  default  = null
  nullable = true
}

locals {
  texts = {
    "Line ends" = "a\r\nb\n\rc\r"
    "Unicode"   = "ä \u2028 \U0001f40d"
  }
}

resource "terraform_data" "later" {
  input = "later"
}

resource "notes_note" "counted" {
  count = var.many
  name  = "n${count.index}"
  text  = "${count.index} ${terraform_data.later.output}"
}

resource "notes_note" "titled" {
  for_each = var.titles
  name     = provider::notes::slug(each.key)
  text     = lookup(local.texts, each.key, each.key)
}

resource "notes_note" "summary" {
  name = "summary-${terraform_data.later.id}"
  text = join("\n", concat(notes_note.counted[*].id, [for note in notes_note.titled : "${note.name}: ${note.size}"]))
}

data "notes_note" "titled" {
  for_each = notes_note.titled
  name     = each.value.id
}

data "notes_note" "first" {
  name       = "n0"
  depends_on = [notes_note.counted]
}

output "sizes" {
  value = { for title, note in data.notes_note.titled : title => note.size }
}

output "first" {
  value = data.notes_note.first.text
}

# As many as counted, after all are there.
data "notes_notes" "counted" {
  prefix     = "n"
  depends_on = [notes_note.counted]
}

output "counted" {
  value = length(data.notes_notes.counted.names)
}
