#include "server.h"

struct ChatUser : WSBaseUser {
    ChatUser() { maxIdle = 600; }
    std::string nick = "guest", room;
};

struct ChatConfig : WSBaseConfig {
    ChatConfig() { address = "localhost"; port = 12345; }
};

class ChatServer : public WebSocketServer<ChatUser, ChatConfig> {
  public:
    using WebSocketServer::WebSocketServer;  // ChatServer server(config);
  private:
    void process(ChatUser &user, WSMessage &msg) override { sendToAllBut(user, msg); }
};

int main() { ChatServer().run(); }
