# One static binary and nothing else: certificates and time zones are in it. It is built outside (`make image`), so
# that nothing is pulled, and an image holds what was tested.
FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="MyTicket" \
      org.opencontainers.image.description="Takes tickets (till receipts) on a webhook and stores each before it answers" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY bin/image/myticket /myticket
USER 65532:65532
EXPOSE 9098 9099
ENTRYPOINT ["/myticket"]
CMD ["serve"]
