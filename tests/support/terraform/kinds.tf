# Values that Terraform knows in part, in attributes and blocks of all kinds (../plugins/kinds_provider.py).
terraform {
  required_providers {
    kinds = {
      source = "example.com/me/kinds"
    }
  }
}

variable "run" {
  default = 1
}

variable "nothing" {
  type    = string
  default = null
}

# Replaced in each run, so that its id, which is not null, is not known before.
resource "terraform_data" "other" {
  triggers_replace = var.run
}

locals {
  id    = terraform_data.other.id
  parts = split("-", local.id)
}

resource "kinds_all" "parts" {
  string = "n${local.id}"
  number = length(local.id)
  bool   = local.id == ""
  json   = jsonencode({ id = local.id })
  list   = ["a", local.id]
  set    = ["a", local.id]
  map    = { a = local.id, b = "b${local.id}" }
  lists  = [["a", local.id], local.parts]
  in_set {
    needed = local.id
    list   = local.parts
  }
  in_set {
    needed = "a"
    list   = [local.id]
  }
  in_list {
    needed = "b"
  }
  in_list {
    needed = "a${local.id}"
    list   = ["a", local.id]
  }
}

resource "kinds_all" "wholes" {
  list  = local.parts
  set   = toset(local.parts)
  map   = { for part in local.parts : part => part }
  lists = [for part in local.parts : [part]]
  dynamic "in_set" {
    for_each = toset(local.parts)
    content {
      needed = in_set.value
    }
  }
  dynamic "in_list" {
    for_each = local.parts
    content {
      needed = in_list.value
    }
  }
}

resource "kinds_all" "nulls" {
  string = var.nothing
  number = null
  list   = [var.nothing]
  map    = { a = var.nothing }
  in_list {
    needed = "x"
    list   = null
  }
}

resource "kinds_all" "number" {
  for_each = toset(["0.1", "0.5", "1"])
  number   = each.value
}

data "kinds_json" "data" {}

output "python_types" {
  value = [for text in ["0.1", "0.5", "1"] : kinds_all.number[text].python_type]
}

output "json" {
  value = jsondecode(data.kinds_json.data.json).key
}
