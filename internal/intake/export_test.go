package intake

// Waiting returns how many tickets wait for a transaction.
func (in *Intake) Waiting() int {
	tickets, _ := in.queue.waiting()
	return tickets
}
