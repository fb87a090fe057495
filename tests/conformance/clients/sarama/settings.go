// sarama, with its cluster admin.
package main

import "github.com/IBM/sarama"

func settings() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.MaxVersion
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Metadata.Retry.Max = 20
	config.ApiVersionsRequest = true
	return config
}
