// franz-go, with its admin client kadm.
package main

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

var ctx = context.Background()

func client(options ...kgo.Opt) *kgo.Client {
	opened, err := kgo.NewClient(append(options, kgo.SeedBrokers(bootstrap()...))...)
	must(err)
	return opened
}
