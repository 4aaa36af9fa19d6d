package quota

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/cgroupstat"
	"github.com/ds01/ds01-proxy/policy"
)

// BenchmarkReserve decides about a container's creation, with a real cgroup in the place
// of the user's slice and of young containers.
func BenchmarkReserve(b *testing.B) {
	tree, err := cgroupstat.System()
	if err != nil {
		b.Skip(err)
	}
	reader, err := cgroupstat.NewReader(tree)
	if err != nil {
		b.Skip(err)
	}
	path := fmt.Sprintf("/ds01-quota-bench-%d", os.Getpid())
	limiter, err := cgroupstat.NewLimiter(tree)
	if err != nil {
		b.Skip(err)
	}
	if err := limiter.Apply(path, nil); err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + path)
		for _, dir := range append(dirs, "/sys/fs/cgroup"+path) {
			_ = os.Remove(dir)
		}
	})
	for _, c := range []struct {
		name  string
		young int
		limit int64
	}{{"alone", 0, 1000 * gib}, {"beside 20 young ones", 20, 1000 * gib}, {"by the use of 3 young ones", 3, 4*gib - 1}, {"by the use of 20 young ones", 20, 21*gib - 1}} {
		b.Run(c.name, func(b *testing.B) {
			keeper := newBench(b, policy.AccountUsage, c.limit)
			keeper.Reader = reader
			keeper.SliceOf = func(*policy.Subject) string { return path }
			keeper.ScopeOf = func(*policy.Subject, string) string { return path }
			for i := range c.young {
				id := fmt.Sprint(i)
				keeper.Book.Set(Container{ID: id, User: "alice", Memory: gib, Running: true, Began: keeper.engine.clock.now()}, keeper.Book.Version(id))
			}
			began := time.Now()
			for b.Loop() {
				// What does not fit is refused in the end.
				h, _ := keeper.reserve(b, "alice", Ask{Memory: gib, New: true})
				h.Drop()
			}
			b.ReportMetric(float64(time.Since(began).Microseconds())/float64(b.N), "µs/op")
		})
	}
}
