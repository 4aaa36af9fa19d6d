package proxy

import "sync"

// userLocks are a lock for each user: what one does makes nobody else wait.
type userLocks struct {
	mu    sync.Mutex
	locks map[string]*sync.RWMutex
}

func (l *userLocks) of(user string) *sync.RWMutex {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locks == nil {
		l.locks = make(map[string]*sync.RWMutex)
	}
	lock := l.locks[user]
	if lock == nil {
		lock = new(sync.RWMutex)
		l.locks[user] = lock
	}
	return lock
}
