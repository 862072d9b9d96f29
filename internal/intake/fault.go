//go:build !unsafeack

package intake

// answerBeforeCommit is a fault that only the build tag unsafeack has: `make chaos` must notice it.
const answerBeforeCommit = false
