package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/ds01/ds01-proxy/proxy/engine"
)

// A statusError is an answer that the proxy gives in the Engine's stead.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string { return e.message }

func badRequest(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// answerOf maps an error to the status and the message that the client reads.
func (s *Server) answerOf(err error) (status int, message string) {
	var (
		own    *statusError
		theirs *engine.StatusError
		away   *unreachableError
		big    *http.MaxBytesError
	)
	switch {
	case errors.As(err, &own):
		return own.status, own.message
	case errors.As(err, &big):
		return http.StatusRequestEntityTooLarge, fmt.Sprintf(
			"the request's body is larger than %d bytes; make it smaller", big.Limit)
	case errors.As(err, &theirs):
		return theirs.Status, theirs.Message
	case errors.As(err, &away):
		return http.StatusBadGateway, away.Error()
	case engine.Unreachable(err):
		return http.StatusBadGateway, (&unreachableError{s.Engine, errors.Unwrap(err)}).Error()
	case errors.Is(err, context.Canceled):
		// The client left; nobody reads this.
		return http.StatusBadGateway, "the request was cancelled"
	}
	return http.StatusBadGateway, fmt.Sprintf("the Docker Engine's answer could not be used: %v", err)
}

// writeError answers in the form of the Engine's own errors.
func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(errorBody(message))
}

// errorBody is a message in the form of the Engine's own errors.
func errorBody(message string) []byte {
	body, err := json.Marshal(struct {
		Message string `json:"message"`
	}{message})
	if err != nil {
		body = []byte(`{"message":"internal error"}`)
	}
	return append(body, '\n')
}
