terraform {
  required_providers {
    bench = {
      source = "example.com/me/bench"
    }
  }
}

resource "bench_item" "these" {
  count = 20
  name  = "number ${count.index}"
}
