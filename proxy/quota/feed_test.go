package quota

import (
	"context"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestASilentContainerHoldsUpNobodyElse has the Engine not answer about more containers
// of one user's than are asked about at once.
func TestASilentContainerHoldsUpNobodyElse(t *testing.T) {
	book := NewBook(time.Now)
	f := NewFeed(book, func(ctx context.Context, id string) (Container, error) {
		if id == "bobs" {
			return Container{ID: id, User: "bob"}, nil
		}
		<-ctx.Done()
		return Container{}, ctx.Err()
	}, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go f.Run(ctx)
	ids := []string{"bobs"}
	for i := range lookers {
		ids = append(ids, "alices-"+string(rune('a'+i)))
	}
	f.Listed(ids, time.Now())
	select {
	case <-book.Ready():
	case <-time.After(10 * lookTime):
		t.Fatal("everybody waits for alice's containers")
	}
	if _, known := book.Container("bobs"); !known {
		t.Error("bob's container is not known")
	}
	if unknown := f.Unknown(); slices.Contains(unknown, "bobs") || len(unknown) == 0 {
		t.Errorf("unknown: %v", unknown)
	}
}
