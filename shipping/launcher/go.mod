module deckhouse-mirror/launcher

go 1.19
